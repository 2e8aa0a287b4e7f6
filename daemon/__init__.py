"""The process: settings, listeners, stores, signals."""
