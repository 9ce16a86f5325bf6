"""The operators of com.microsoft."""
