"""Load shapes, one a file, for locust -f loadtest/locustfile.py,loadtest/shapes/<name>.py."""
