"""Training view of the page, for the person at this machine only (`xianliao-serve --studio`).

The commands do the work: `xianliao-prepare` and `xianliao-train` run as processes, one at a time, and the view reads the
files that they write. A client chooses among files that the operator's folder holds, or sends text; it never names a path.
"""
