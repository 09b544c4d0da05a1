"""All variants of one network in one table, and the choice of one of them within limits.

Knows what is recorded of a variant, its file (`table`) and its page (`page`). Does not know: how a variant is made or
run, which `measure` leaves to `export` and `evaluation`. Begin with `decision`, which chooses among recorded rows.
"""
