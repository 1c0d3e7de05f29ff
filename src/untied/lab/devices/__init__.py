"""Fabric, and what several processes need beside it."""
