"""Reads messages: detectors of follow-ups, guards, edits, program output, near duplicates. Pure text functions."""
