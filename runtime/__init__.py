"""What goes on the device: bundles, engines, faces, video. Never loads torch."""
