"""Tests of the files for containers, without a container engine."""
