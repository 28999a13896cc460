"""Models as transformers loads them: `AutoModelForCausalLM.from_pretrained` after `import loopscale`."""
