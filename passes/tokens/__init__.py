"""Token compression: fewer tokens between attention blocks, with the legality of it shown."""

from planish.passes.tokens.compress_tokens import CompressTokens as CompressTokens
