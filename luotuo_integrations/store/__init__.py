"""The FAISS store itself: vectors, ids, documents, filters and files. No framework is imported here."""
