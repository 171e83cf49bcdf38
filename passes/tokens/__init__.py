"""Token compression: fewer tokens between attention blocks, with the legality of it shown."""
