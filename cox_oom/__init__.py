"""What the four stages of COX share: files, learner, connections, anchors, methods, data sets, perceptors, report."""
