"""What methods share: rows aligned at the subject, the part of a forward pass an edit changes, targets, solves."""
