"""What runs in one container: the supervisor with its two children, and the jobs that join the rooms."""
