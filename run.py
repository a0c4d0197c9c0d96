from hvp_jax.cli.main import main

if __name__ == "__main__":  # decoding processes import this file too
    raise SystemExit(main())
