"""What a message says: detectors of follow-ups, guards, edits, program output, near duplicates. Pure text functions."""
