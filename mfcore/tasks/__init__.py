"""Downstream tasks, and encoders judged by them as kaiko-ai/eva does."""
