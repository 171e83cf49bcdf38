"""Small models for the raising passes: exported files, and hand-written operator spellings."""
