"""Leaves that know nothing of losses, networks or data: files, logs, reports."""
