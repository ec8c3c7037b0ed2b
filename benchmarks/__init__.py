"""python -m benchmarks: the ops beside what anyone would use instead, and beside what moving the data costs."""
