"""What test rigs use beside the API: the pytest plugin."""
