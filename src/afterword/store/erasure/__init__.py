"""Forgetting a user: finding and removing every row that holds something of theirs."""
