"""Archives: folders and object stores of photos through restoration servers, by Ray Data, resumable: `ipt-batch`."""
