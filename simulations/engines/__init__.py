"""Engines that run the same server and client apps: in this process, or on Ray."""
