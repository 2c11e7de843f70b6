"""What happens to requests: every answer, error, time-out and crash, each under a name in `table`."""
