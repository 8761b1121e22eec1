"""The client: a command, a library and a page that restore photographs through a running server."""
