"""Operations whose gradients stay fast inside compiled loops."""
