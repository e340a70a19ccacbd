"""Metrics, diagnostics and pictures of slot models."""
