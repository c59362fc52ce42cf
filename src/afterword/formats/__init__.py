"""Outside formats, each in one module that reads and writes it, for files and for HTTP. `registry` is the table.

Owns the field names of other products. Readers and writers are pure; `naming` and `export` read the store.
"""
