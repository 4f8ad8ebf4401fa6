"""Strict two-way conversion between svdjax parameter trees and PyTorch checkpoints."""
