"""What the network sees: handlers, status mapping, interceptors, health, metrics and the life of a server."""
