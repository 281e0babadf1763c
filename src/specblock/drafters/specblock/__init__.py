"""The SpecBlock drafter: K dependent positions per forward, blocks chained into a tree."""
