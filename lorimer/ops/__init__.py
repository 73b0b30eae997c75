"""Operations over adapters that know no method by name: merging, saving, loading."""
