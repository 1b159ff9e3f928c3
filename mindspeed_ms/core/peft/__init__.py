"""Adapters of low rank beside frozen layers."""
