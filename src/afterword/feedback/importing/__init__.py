"""Files of other products -> turns and feedback in the store, resumable and with every rejected row kept."""
