"""SPEAR transports over Unix and TCP sockets."""
