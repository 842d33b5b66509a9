"""What Streamlit runs for every visit. Child processes import it too, under another name, and it does nothing there."""

if __name__ == "__main__":
    from clotkit.app.pages.navigation import main

    main()
