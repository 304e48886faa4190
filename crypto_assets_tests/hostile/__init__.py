"""Ingestion against a market that misbehaves by a seed."""
