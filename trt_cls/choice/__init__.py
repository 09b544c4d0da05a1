"""All precisions of one network in one table, and the choice of one of them within limits.

`decision` chooses among recorded measurements, `table` reads and writes them, `measure` makes them, `page` shows them.
"""
