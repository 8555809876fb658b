"""This machine: its files, devices, processes and downloads."""
