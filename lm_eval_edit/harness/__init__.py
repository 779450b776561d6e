"""What touches the insides of the LM Evaluation Harness, kept together because those change with its releases."""
