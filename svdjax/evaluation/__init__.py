"""Evaluation: what samples show, measured."""
