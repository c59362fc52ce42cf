"""The Report as rows and as a page."""
