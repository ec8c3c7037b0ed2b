"""python -m benchmarks: the package's ops beside what anyone would use instead, and beside what moving the data costs."""
