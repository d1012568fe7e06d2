"""What went wrong with the Hub, in words."""

# What comes of answers that are not the Hub's, such as a network's login page.
GARBLED = (ValueError, TypeError, LookupError, AttributeError, RecursionError)


def explain_hub_error(error: Exception, repo: str) -> str:
    """What a failed call to the Hub means and what to do, to end a sentence with."""
    from huggingface_hub import errors

    if isinstance(error, errors.LocalEntryNotFoundError) and isinstance(error.__cause__, Exception):
        error = error.__cause__  # why a download could not begin
    cause = str(error).strip().partition("\n")[0] or type(error).__name__
    if type(error).__name__ in ("RemoteProtocolError", "ReadError"):  # of httpx
        return f"the connection broke off ({cause}): try again; files that are complete are kept"
    match error:
        case errors.GatedRepoError():
            page = f"https://huggingface.co/{repo}"
            return f"the repository is gated: accept its licence at {page}, then `hf auth login`"
        case errors.RevisionNotFoundError():
            return "the Hub has no such revision of it"
        case errors.HfHubHTTPError(response=response) if response.status_code in (401, 403, 404):
            return "the Hub has no such repository (or it is private: `hf auth login`)"
        case errors.HfHubHTTPError(response=response):
            return f"the Hub answers {response.status_code} {response.reason_phrase}: try later"
        case errors.OfflineModeIsEnabled():
            return "HF_HUB_OFFLINE is set: go online once to download it"
        case errors.HTTPError():
            return f"the Hub cannot be reached ({cause}): go online once to download it"
    if isinstance(error, GARBLED):
        return f"what answers there is not the Hub ({cause[:100]}): go online once to download it"
    return cause
