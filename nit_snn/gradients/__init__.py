"""From cotangents to `.grad`."""
