"""Tests of the warehouse; the modules mirror the package."""
