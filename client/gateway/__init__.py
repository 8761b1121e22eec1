"""The gateway: pictures in, pictures out over HTTP, in front of one or several restoration servers."""
