"""Running codecs on clips, measuring them, and telling what came out."""
