"""Load tests that anyone can repeat: locust -f loadtest/locustfile.py."""
