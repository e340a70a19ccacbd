"""Many runs: the jobs of a sweep on several machines, and a search over settings."""
