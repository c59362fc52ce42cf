"""Renders reports and heat maps as pages."""
