"""What touches the insides of the LM Evaluation Harness, kept together because those change with its releases.

requests        requests, documents and responses in the forms of the installed release
exact_requests  requests for one token of an object
sampled         texts sampled from generators of their own
rolling         the rolling likelihood of a text's own tokens
exact_model     HFLM as the one rule for tokens wants it
endings         whether, and with what, an output ended
outputs         what a model said, with what is known of its end
response_cache  the response cache, kept apart for each state of the weights
served          lm-eval's vLLM model, which answers for many edits of one model
left_over       processes of an engine that outlive the killed program that started them
engines         which engine gave the figures of a results file
loading         what HFLM is given where the command line's own choice would be a bad one
our_tasks       our tasks as their YAML files declare them
command         the harness's own command line
remembered      a task's requests and a text's tokens, made once
run_records     an evaluation as the harness's command records it
samples         logged samples in the forms of the releases

The hooks that extend it at start-up are in `_startup/`.
"""
